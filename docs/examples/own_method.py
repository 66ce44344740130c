"""A method of your own: a score for the weights of the surviving members."""

import numpy as np
from shared import params, samples

import ensdiff

x_BHWC = 2 * np.asarray(samples.images) - 1  # model space is [-1, 1]
eps_KBHWC = np.asarray(ensdiff.predict(params, x_BHWC, 10))


def change_of_prediction(weights_MK):
    """How far the noise that the ensemble sees in the finished image moves, (B, M); larger is more influential."""
    d_MK = weights_MK - np.asarray(samples.weights_K)
    moved_MBHWC = np.einsum("mk,kbhwc->mbhwc", d_MK, eps_KBHWC)
    return np.sqrt((moved_MBHWC**2).sum((2, 3, 4))).T


att = ensdiff.attribute(params, samples, change_of_prediction, top=3, null=9)
print(att)
