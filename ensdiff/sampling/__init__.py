"""Samples and counterfactuals: states under any weight rows, denoised in batches."""
