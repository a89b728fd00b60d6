"""What a CPU makes of a model: the decoder and its kernels, without the server around them."""
