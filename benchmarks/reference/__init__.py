"""The released mathematics written plainly: what ``panoda bench`` measures the engine against.

Eager float32, torchvision's deformable operator, attention matrices held, loops over classes, values
fetched from the device at every step. Weights carry the names of ``panoda``'s own Trans4PASS T, so both
can be given the same. Facts from Trans4PASS (CVPR 2022, arXiv 2203.01452) and its released code; the
defects of that code are left out, so that both sides compute the same numbers.
"""
