"""From rows of metrics to tables, a picture, a summary, and progress while a run goes.

Import from the modules: `folder` (everything at once), `tables`, `figures`, `summary`, `progress`.
They are not imported here, so that a run without a picture does without matplotlib. May import
every other room.
"""
