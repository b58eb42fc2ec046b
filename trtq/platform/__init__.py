"""The catalogue of platforms: devices, releases of TensorRT, and targets made of the two."""
