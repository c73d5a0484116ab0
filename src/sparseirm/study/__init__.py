"""A user's own table, from the file to a model that was checked: `fit` and `predict`."""
