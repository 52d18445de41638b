"""Classification of images: the two ways the field judges an encoder, fine-tuning and a linear probe."""
