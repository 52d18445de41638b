"""Pure tensor geometry: rays of equirectangular and pinhole images, views and weights."""
