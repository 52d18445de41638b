"""The model as MLflow serves it: base64 files or arrays in, label PNGs and class shares out.

MLflow copies this file into the logged model and runs it to get the model ("models from code"): nothing is pickled.
"""

from __future__ import annotations

import base64
import binascii
import io
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from panoda.system.errors import DataError
from panoda.tracking.registry import MAX_MEGABYTES

COLUMN = "image"


class ServedModel(PythonModel):
    """A panoda checkpoint behind MLflow's interface."""

    def load_context(self, context: Any) -> None:
        """Open the checkpoint that lies in the logged model."""
        from panoda.deployment.model import load

        self._model = load(Path(context.artifacts["model"]))
        self._max_bytes = int(1e6 * (context.model_config or {}).get("max_megabytes", MAX_MEGABYTES))

    def predict(
        self,
        context: Any,
        model_input,  # type: ignore[no-untyped-def]  # MLflow would take a hint for the signature
        params: dict[str, Any] | None = None,
    ) -> list[dict[str, Any]]:
        """Label images.

        Args:
            context: MLflow's; not used after loading.
            model_input: A table (or mapping) with a column ``image``: base64 texts of image files (JPEG, PNG, ...),
                or nested lists (H, W, 3) of RGB values in 0..255.
            params: ``projection``: auto, erp, band or pinhole, as of ``panoda predict``.

        Returns:
            For each image ``label_png`` (base64 of a palette PNG of train ids), ``taken_for`` and ``shares``.

        Raises:
            MlflowException: what is no image, or is too large; the server answers 400.
        """
        cells = model_input[COLUMN] if isinstance(model_input, pd.DataFrame | dict) else model_input
        images = [image for cell in cells for image in _several(cell)]
        projection = (params or {}).get("projection", "auto")
        return [self._one(number, image, projection) for number, image in enumerate(images)]

    def _one(self, number: int, image: Any, projection: str) -> dict[str, Any]:
        from panoda.deployment.model import label_png

        with TemporaryDirectory() as folder:
            try:
                is_file = isinstance(image, str | bytes)
                given = self._file(image, Path(folder)) if is_file else self._array(image)
                found = self._model.predict(given, projection=projection)  # type: ignore[arg-type]
            except ValueError as error:
                reason = str(error).replace(f"{folder}/image: ", "")
                raise MlflowException.invalid_parameter_value(f"image {number}: {reason}") from error
        stream = io.BytesIO()
        label_png(found.label, found.space).save(stream, format="PNG")
        return {
            "label_png": base64.b64encode(stream.getvalue()).decode(),
            "taken_for": str(found.view),
            "shares": found.shares(),
        }

    def _file(self, text: str | bytes, folder: Path) -> Path:
        """The image file of a base64 text; a file, because metadata is read from it, too."""
        if len(text) * 3 // 4 > self._max_bytes:
            raise DataError(f"{len(text) * 3 / 4e6:.0f} MB, at most {self._max_bytes / 1e6:g} MB are taken")
        try:
            data = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise DataError(f"neither base64 of an image file nor an array ({error})") from error
        file = folder / "image"
        file.write_bytes(data)
        return file

    def _array(self, values: Any) -> np.ndarray:
        """(H, W, 3) uint8 of nested lists."""
        try:
            array = np.asarray(values)
            array = array if array.dtype == np.uint8 else np.array(values, dtype=np.float64)
        except (ValueError, TypeError) as error:
            raise DataError("neither base64 of an image file nor an array (H, W, 3)") from error
        if array.size > 20 * self._max_bytes:
            raise DataError(
                f"{array.size / 1e6:.0f} million values, at most {20 * self._max_bytes / 1e6:g} are taken"
            )
        if array.ndim != 3 or array.shape[2] != 3 or not ((array >= 0) & (array <= 255)).all():
            raise DataError(f"expected an RGB array (H, W, 3) of values in 0..255, found shape {array.shape}")
        if (array != array.round()).any():
            raise DataError(
                "values of the array are not whole; expected 0..255 (multiply what lies in 0..1 by 255)"
            )
        return array.astype(np.uint8)


def _several(cell: Any) -> list[Any]:
    """The images of a cell: MLflow puts the whole list of a request's ``inputs`` into one."""
    depth, first = 0, cell
    while isinstance(first, list | np.ndarray) and len(first):
        depth, first = depth + 1, first[0]
    return list(cell) if depth == 4 or (depth and isinstance(first, str)) else [cell]


set_model(ServedModel())
