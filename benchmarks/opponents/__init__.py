"""What `dimat_jax` is measured against: the same work as others do it."""
