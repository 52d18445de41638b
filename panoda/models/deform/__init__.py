"""The deformable convolution behind ``panoda.models.deform.ops``: plain, fused, and the choice between them.

``choice`` is the switch, ``plain`` the two steps, ``fused`` the custom operator; ``launch``, ``rows``,
``grid`` and ``corners`` are its Triton kernels and are imported only where Triton is.
"""
