"""Sections of the kinds of data sets; each tells its native label space and whether its images cover 360 degrees."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from panoda.config.section import Count, Range, Section, Size

Projection = Literal["pinhole", "erp"]
Some = Field(min_length=1)


class CameraParams(Section):
    """The virtual camera that renders the embedded city."""

    projection: Projection
    """pinhole, or erp (equirectangular; a vertical band when the latitudes are inside +-90)."""
    height: Size
    """Image height in pixels."""
    width: Size
    """Image width in pixels."""
    fov_x_deg: Annotated[float, Field(gt=10, lt=170)] = 90.0
    """Horizontal field of view in degrees; pinhole only."""
    lat_top_deg: Annotated[float, Field(ge=-90, le=90)] = 90.0
    """Latitude of the upper edge in degrees; erp only."""
    lat_bottom_deg: Annotated[float, Field(ge=-90, le=90)] = -90.0
    """Latitude of the lower edge in degrees; erp only."""

    @model_validator(mode="after")
    def _band(self) -> CameraParams:
        if self.lat_top_deg <= self.lat_bottom_deg:
            raise ValueError("lat_top_deg must lie above lat_bottom_deg")
        return self


class CitySplit(Section):
    """One split of an embedded-city data set."""

    images: Annotated[int, Field(ge=1)]
    """Number of images."""
    seed: Count
    """First world seed; world i has seed + i. Splits must not share worlds."""
    labels: bool = True
    """Write labels; false for the unlabelled target train split."""


class LookParams(Section):
    """How a city looks through its camera: palette, light, air, exposure, sensor, building style.

    Fields documented with a pair are drawn uniformly per world (or per image, where said).
    """

    hue_shift_deg: Range = (0.0, 0.0)
    """Hue rotation of building, car and clothes palettes in degrees."""
    saturation: Range = (1.0, 1.0)
    """Factor on palette saturation."""
    sun_elevation_deg: Range = (30.0, 60.0)
    """Sun height above the horizon in degrees."""
    sun_strength: Range = (1.0, 1.0)
    """Direct light relative to a clear noon; 0 = overcast."""
    sun_warmth: Range = (0.0, 0.0)
    """0 = white sun, 1 = deep sunset orange."""
    ambient: Range = (0.35, 0.45)
    """Ambient light relative to full sun."""
    sky: Annotated[tuple[Literal["clear", "cloudy", "overcast", "sunset"], ...], Some] = ("clear",)
    """Sky types to draw from: clear, cloudy, overcast, sunset."""
    haze_per_m: Range = (0.0, 0.003)
    """Extinction of the air per metre."""
    exposure_ev: Range = (0.0, 0.0)
    """Exposure shift in stops, drawn per image."""
    gamma: Range = (1.0, 1.0)
    """Tone curve exponent after exposure, drawn per image; above 1 darkens mid tones."""
    white_balance: Range = (0.0, 0.0)
    """Colour cast: negative bluish, positive yellowish, about -1..1, drawn per image."""
    noise: Range = (0.005, 0.015)
    """Sensor noise, standard deviation as a share of full scale, drawn per image."""
    building_styles: Annotated[
        tuple[Literal["plaster", "brick", "glass", "concrete", "timber"], ...], Some
    ] = ("plaster",)
    """Facade styles to draw from: plaster, brick, glass, concrete, timber."""
    palettes: Annotated[tuple[Literal["pastel", "brick", "earth", "white", "grey", "vivid"], ...], Some] = (
        "pastel",
    )
    """Facade palettes to draw from, per building: pastel, brick, earth, white, grey, vivid."""
    storeys: tuple[int, int] = (2, 6)
    """Fewest and most storeys of a building."""
    trees: Annotated[tuple[Literal["round", "conifer", "palm"], ...], Some] = ("round",)
    """Tree kinds to draw from: round, conifer, palm."""
    dryness: Range = (0.0, 0.3)
    """Leaves and grass: 0 = lush green, 1 = yellow-brown."""
    road_albedo: Range = (0.09, 0.14)
    """Reflectance of asphalt (linear)."""

    @model_validator(mode="after")
    def _check(self) -> LookParams:
        if not 1 <= self.storeys[0] <= self.storeys[1]:
            raise ValueError(f"storeys {self.storeys} must be two rising numbers from 1")
        return self


class CityDataset(Section):
    """The embedded procedural city."""

    label_space: ClassVar[str] = "cs19"

    kind: Literal["city"]
    """Data set type."""
    path: str = "panoda/city"
    """Folder the images are made from: the code that renders them."""
    camera: CameraParams
    """The camera."""
    looks: dict[str, LookParams | None]
    """Looks by name; null takes the built-in look of that name. Worlds cycle through them."""
    splits: dict[str, CitySplit]
    """Splits by name."""
    images_per_world: Annotated[int, Field(ge=1)] = 4
    """Camera positions rendered in each world."""

    @model_validator(mode="after")
    def _disjoint(self) -> CityDataset:
        spans = sorted(
            (s.seed, s.seed + -(-s.images // self.images_per_world), name) for name, s in self.splits.items()
        )
        for (_, end, one), (start, _, two) in zip(spans, spans[1:], strict=False):
            if start < end:
                raise ValueError(f"splits {one} and {two} share world seed {start}; move one seed")
        return self

    @property
    def full_circle(self) -> bool:
        """The images cover 360 degrees."""
        return self.camera.projection == "erp"


class FolderDataset(Section):
    """A plain folder of panoramas without labels, of any sizes, used in place."""

    label_space: ClassVar[None] = None
    full_circle: ClassVar[bool] = True

    kind: Literal["folder"]
    """Data set type."""
    path: str
    """Folder; searched recursively for images."""
    splits: dict[str, list[str]] = {"train": ["**/*"]}
    """Split name -> glob patterns relative to path. A split named test may repeat train's files."""
    crop_top: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the height cut off at the top."""
    crop_bottom: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the height cut off at the bottom."""
    ignore_bottom: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the cropped height, at the bottom, where nothing is learned (logo, car roof)."""
    lat_top_deg: Annotated[float, Field(ge=-90, le=90)] = 90.0
    """Latitude of the uncropped upper edge in degrees."""
    lat_bottom_deg: Annotated[float, Field(ge=-90, le=90)] = -90.0
    """Latitude of the uncropped lower edge in degrees."""

    @model_validator(mode="after")
    def _check(self) -> FolderDataset:
        if self.lat_top_deg <= self.lat_bottom_deg:
            raise ValueError("lat_top_deg must lie above lat_bottom_deg")
        if self.crop_top + self.crop_bottom >= 1:
            raise ValueError("crop_top and crop_bottom leave nothing of the images")
        return self


class DeclaredDataset(Section):
    """A data set that a YAML file declares: a built-in one, or the user's own."""

    kind: Literal["declared"]
    """Data set type."""
    declaration: str
    """Name of a built-in declaration, or path of a YAML file (panoda/data/formats/declaration.py has its fields)."""
    path: str
    """Folder with the data; used in place. The built-in ones are downloaded to data/downloads/NAME."""
    splits: dict[str, str]
    """Our split name -> split name of the declaration. Two of ours may name the same."""
    groups: list[str] | None = None
    """Only images of these groups (cities, weathers, ...); null = all."""
    unlabelled: list[str] = []
    """Our splits whose labels are left out, such as train of a target that comes with labels."""


class Stanford2D3DDataset(Section):
    """Stanford2D3D, indoor: pinhole images or panoramas of seven areas, in three folds."""

    label_space: ClassVar[str] = "indoor13"

    kind: Literal["stanford2d3d"]
    """Data set type."""
    path: str
    """Folder with area_1 .. area_6 and semantic_labels.json; used in place."""
    variant: Literal["pinhole", "panoramic"]
    """area_*/data (1080 x 1080) or area_*/pano (equirectangular, 4096 x 2048)."""
    fold: Literal[1, 2, 3] = 1
    """Validation areas: 1 = 5a, 5b; 2 = 2, 4; 3 = 1, 3, 6; the other areas are for training."""
    splits: dict[str, Literal["train", "val"]] = {"train": "train", "val": "val"}
    """Our split name -> part of the fold."""
    unlabelled: list[str] = []
    """Our splits whose labels are left out, such as train of a target."""
    fov_x_deg: Annotated[float, Field(gt=10, lt=170)] = 60.0
    """pinhole: horizontal field of view in degrees of images without a pose file, which has the exact one."""
    crop_top: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """panoramic: share of the height cut off at the top (the upper pole)."""
    crop_bottom: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """panoramic: share of the height cut off at the bottom (the lower pole)."""

    @model_validator(mode="after")
    def _check(self) -> Stanford2D3DDataset:
        if self.crop_top + self.crop_bottom >= 1:
            raise ValueError("crop_top and crop_bottom leave nothing of the images")
        if self.variant == "pinhole" and (self.crop_top or self.crop_bottom):
            raise ValueError("crop_top and crop_bottom are for variant: panoramic")
        return self

    @property
    def full_circle(self) -> bool:
        """The images cover 360 degrees."""
        return self.variant == "panoramic"


class Structured3DDataset(Section):
    """Structured3D, indoor: rendered panoramas, furnished, in one of three lights."""

    label_space: ClassVar[str] = "nyu40"
    full_circle: ClassVar[bool] = True

    kind: Literal["structured3d"]
    """Data set type."""
    path: str
    """Folder with scene_00000 .. scene_03499; used in place."""
    light: Literal["rawlight", "coldlight", "warmlight"] = "rawlight"
    """Which rendering of every room."""
    splits: dict[str, Literal["train", "val", "test"]] = {"train": "train", "val": "val"}
    """Our split name -> published one: scenes 0-2999, 3000-3249, 3250-3499."""
    unlabelled: list[str] = []
    """Our splits whose labels are left out, such as train of a target."""


AnyDataset = CityDataset | FolderDataset | DeclaredDataset | Stanford2D3DDataset | Structured3DDataset
"""Section of any data set kind."""
