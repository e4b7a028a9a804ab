"""Functions that generated modules need: their source is copied, so they import torch alone."""
