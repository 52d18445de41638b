"""Deformable convolution (``ops``) and the layers built on it (``layers``, ``decoder``)."""
