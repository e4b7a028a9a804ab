"""Repair without training: weights solved for, biases moved, statistics measured again."""
