"""Models in use: labelled files, exported models, what a model costs."""
