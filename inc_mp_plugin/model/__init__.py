"""A torch model, its data and its loss; nothing of the method."""
