"""The denoising network of one member, and the convolution that it is made of."""
