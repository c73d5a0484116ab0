"""Your own table or images, from the files to a model that was checked: `fit` and `predict`."""
