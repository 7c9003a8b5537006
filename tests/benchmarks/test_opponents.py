"""The opponents do the same work as ours: the same networks, outputs, steps and correlations."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

import dimat_jax as dj
from benchmarks import ours
from benchmarks.opponents import jax_plain
from benchmarks.work import NUM_CLASSES, Work, noise

ZOO = [("mlp", 0.1), ("convnet", 0.5), ("vgg16", 0.05), ("resnet20", 0.25)]
RENAMED = {
    "kernel": "weight",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
    "bias": "bias",
}


def quick_jit(function):
    """Compiled without optimisation: most of a test's time is compilation."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def random_variables(name, width):
    """A model and variables whose running statistics are not the initial ones."""
    model = dj.models.make(name, num_classes=NUM_CLASSES, width=width)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    rng = np.random.default_rng(0)

    def draw(path, x):
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.5, 1.5, x.shape).astype(np.float32)
        fan_in = max(1, x.size // x.shape[-1])
        return rng.normal(0, (2 / fan_in) ** 0.5, x.shape).astype(np.float32)

    return model, jax.tree.map_with_path(draw, shapes)


def place_in_torch(name, path):
    """Where a Flax leaf, given as ``(collection, *modules, leaf)``, lies in PyTorch's model."""
    modules, leaf = list(path[1:-1]), RENAMED[path[-1]]
    if name == "resnet20" and modules[0].startswith("stage"):
        stage, block = (int(part[-1]) for part in modules[0].split("_"))
        inner = {"ConvNorm_0": "first", "ConvNorm_1": "second", "shortcut": "projection"}
        modules = ["blocks", str(3 * (stage - 1) + block - 1), inner[modules[1]], modules[-1]]
    elif name in ("convnet", "vgg16") and not modules[0].startswith("Dense"):
        modules = ["layers", modules[0].split("_")[1], modules[0]]
    kind, _, index = modules[-1].partition("_")
    if kind == "Dense":
        last = name != "mlp" or index == "3"
        modules = ["head"] if last else ["hidden", index]
    else:
        modules[-1] = {"Conv": "conv", "BatchNorm": "norm"}[kind]
    return ".".join([*modules, leaf])


def as_torch(name, width):
    """The same network here and in PyTorch, with the same weights."""
    torch = pytest.importorskip("torch")
    from benchmarks.opponents import torch_models

    model, variables = random_variables(name, width)
    theirs = torch_models.make(name, NUM_CLASSES, width)
    state = {}
    for path, leaf in flatten_dict(variables).items():
        turned = {4: leaf.transpose(3, 2, 0, 1) if leaf.ndim == 4 else None, 2: leaf.T}
        array = np.ascontiguousarray(turned.get(leaf.ndim, leaf))
        state[place_in_torch(name, path)] = torch.from_numpy(array)
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected and all(key.endswith("num_batches_tracked") for key in missing)
    parameters = sum(p.numel() for p in theirs.parameters())
    assert parameters == sum(x.size for x in jax.tree.leaves(variables["params"]))
    return model, variables, theirs


@pytest.mark.parametrize(("name", "width"), ZOO)
def test_pytorchs_networks_are_ours(name, width):
    torch = pytest.importorskip("torch")
    model, variables, theirs = as_torch(name, width)
    x = np.random.default_rng(1).normal(size=(8, 32, 32, 3)).astype(np.float32)
    images = torch.from_numpy(x).permute(0, 3, 1, 2)
    assert images.is_contiguous(memory_format=torch.channels_last)
    for train in (False, True):
        theirs.train(train)
        expected = theirs(images).detach().numpy()
        found = model.apply(variables, x, train=train)[0]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_pytorchs_convolutions_run_channels_last():
    torch = pytest.importorskip("torch")
    _, _, theirs = as_torch("resnet20", 0.25)
    seen = []
    for module in theirs.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda module, args, out: seen.append((args[0], out)))
    theirs(torch.randn(4, 3, 32, 32).contiguous(memory_format=torch.channels_last))
    layout = torch.channels_last
    assert len(seen) == 21
    assert all(x.is_contiguous(memory_format=layout) for pair in seen for x in pair)


def test_pytorch_augments_as_ours_does():
    torch = pytest.importorskip("torch")
    from benchmarks.opponents import torch_loop

    images = torch.from_numpy(noise(64)[0])
    found = torch_loop.flip_and_crop(images)
    assert found.shape == images.shape and found.dtype == torch.uint8
    corners = set()
    for image, one in zip(images.numpy(), found.numpy(), strict=True):
        framed = {
            flip: np.pad(image[:, :: 1 - 2 * flip], ((4, 4), (4, 4), (0, 0))) for flip in (0, 1)
        }
        matches = [
            (flip, i, j)
            for flip, frame in framed.items()
            for i in range(9)
            for j in range(9)
            if (frame[i : i + 32, j : j + 32] == one).all()
        ]
        assert len(matches) == 1
        corners.add(matches[0])
    assert {flip for flip, _, _ in corners} == {0, 1} and len(corners) > 30


def test_pytorchs_loop_trains_each_agent_on_its_own_data():
    torch = pytest.importorskip("torch")
    from benchmarks.opponents import torch_loop

    work = Work("mlp", 0.1, agents=3, batch=8, steps=2)
    agents = torch_loop.make_agents(work, *noise(work.images))
    assert len({agent.images.data_ptr() for agent in agents}) == 3
    before = [next(agent.model.parameters()).clone() for agent in agents]
    torch_loop.train(agents, work.batch)
    after = [next(agent.model.parameters()) for agent in agents]
    assert all((a != b).any() and b.isfinite().all() for a, b in zip(before, after, strict=True))
    images, labels = (torch.from_numpy(x) for x in noise(30))
    assert all(0 <= correct <= 30 for correct in torch_loop.evaluate(agents, images, labels))


def test_published_statistics_are_those_of_the_images():
    torch = pytest.importorskip("torch")
    from benchmarks.opponents import published, torch_loop

    _, _, model = as_torch("resnet20", 0.25)
    images = torch.from_numpy(noise(2 * published.FORWARD_BATCH)[0])
    published.reset(model, images)
    with torch.no_grad():
        features = model.stem.conv(torch_loop.normalize(images))
    mean = features.mean((0, 2, 3))
    np.testing.assert_allclose(model.stem.norm.running_mean, mean, rtol=1e-3, atol=1e-4)
    assert model.stem.norm.momentum == 0.1


def test_published_correlations_are_numpys():
    torch = pytest.importorskip("torch")
    from benchmarks.opponents import published, torch_loop

    models = [as_torch("resnet20", 0.25)[2] for _ in range(2)]
    torch.manual_seed(0)
    for parameter in models[1].parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    images = torch.from_numpy(noise(published.FORWARD_BATCH + 20)[0])
    tables = published.match(models, images)
    with torch.inference_mode():
        x = torch_loop.normalize(images)
        ours, others = (published.features_of(model, x) for model in models)
    assert len(tables) == len(ours) == 12
    for table, f, g in zip(tables, ours, others, strict=True):
        units = f.shape[1]
        assert (f >= 0).all()  # after the nonlinearity
        with np.errstate(invalid="ignore"):  # units that are constant
            expected = np.nan_to_num(np.corrcoef(f.numpy().T, g.numpy().T)[:units, units:])
        np.testing.assert_allclose(table, expected, atol=2e-3)
    chosen = published.assign(tables)
    assert all(sorted(p) == list(range(len(p))) for p in chosen) and not tables


@pytest.mark.parametrize("topology", ["ring", "fully_connected"])
def test_a_published_round_has_all_its_parts(topology):
    pytest.importorskip("torch")
    from benchmarks.opponents import published

    work = Work("resnet20", 0.0625, agents=3, batch=8, steps=2)
    block = published.round_block(work, topology, 0.5, tests=100, measured_tests=50)
    for found in (block(), block()):
        assert set(found) == {"match", "assign", "mix", "statistics", "train", "evaluate"}
        assert all(seconds > 0 for seconds in found.values())


@pytest.mark.parametrize("form", sorted(jax_plain.FORMS))
def test_each_form_of_plain_jax_is_one_agents_step(form):
    model = dj.models.convnet(width=0.0625)
    step = jax_plain.make_step(model, optax.sgd(0.01, momentum=0.9))
    initial = jax_plain.make_initial(model, optax.sgd(0.01, momentum=0.9))
    keys = jax.random.split(jax.random.key(0), 2)
    states = list(map(quick_jit(initial), keys))
    images, labels = (x.reshape(2, 4, *x.shape[1:]) for x in noise(8))
    one = quick_jit(step)
    expected = [one(*arguments) for arguments in zip(states, images, labels, strict=True)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    found = quick_jit(jax_plain.FORMS[form](step))(stacked, images, labels)
    for agent in range(2):
        pairs = zip(
            jax.tree.leaves(jax_plain.pick(found, agent).variables),
            jax.tree.leaves(expected[agent].variables),
            strict=True,
        )
        for a, b in pairs:
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("form", ["vmap", "independent"])
def test_blocks_of_plain_jax_train(form):
    block = jax_plain.epochs(Work("mlp", 0.05, agents=2, batch=4, steps=2), form)
    block()
    block()


def test_what_a_merge_has_to_do_is_counted():
    work = Work("mlp", 0.125, agents=4, batch=8, steps=1)  # three layers of 32 units
    count = ours.count_merge(work, "ring")
    sizes = (3072, 32, 32, 32, 10)
    parameters = sum(a * b + b for a, b in zip(sizes[:-1], sizes[1:], strict=True))
    forward = 2 * 8 * sum(a * b for a, b in zip(sizes[:-1], sizes[1:], strict=True))
    assert count["network_bytes"] == 4 * parameters
    assert count["edges"] == 8 and count["assignments"] == {32: 24}
    assert count["mix_bytes"] == 16 * count["network_bytes"]
    products = 8 * 3 * 2 * 8 * 32**2
    assert count["match_operations"] == pytest.approx(12 * forward + products, rel=0.02)
    assert count["statistics_operations"] == 0


@pytest.mark.slow
def test_ours_is_a_runs_own_training_and_merge():
    work = Work("mlp", 0.05, agents=4, batch=8, steps=2)
    population = ours.make_population(work)
    block = ours.epochs(population)
    block()
    block()
    merge = ours.merges(work, "ring")
    for found in (merge(), merge()):
        assert {"match", "assign", "mix"} <= {k for k, spent in found["seconds"].items() if spent}
        assert found["before"] > 0
    parts = ours.rounds(work, "fully_connected", 0.5, 100, 50)()
    assert {"match", "assign", "mix", "train", "evaluate"} <= set(parts)
