"""Datasets by name: text, conversations, images, pairs of images, tokens; and what makes them."""
