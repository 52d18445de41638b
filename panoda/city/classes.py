"""Train ids of what stands in the city: the cs19 label space by name."""

from __future__ import annotations

from panoda.labels import get_label_space

_CS19 = get_label_space("cs19")

ROAD = _CS19.index("road")
SIDEWALK = _CS19.index("sidewalk")
BUILDING = _CS19.index("building")
WALL = _CS19.index("wall")
FENCE = _CS19.index("fence")
POLE = _CS19.index("pole")
LIGHT = _CS19.index("traffic light")
SIGN = _CS19.index("traffic sign")
VEGETATION = _CS19.index("vegetation")
TERRAIN = _CS19.index("terrain")
SKY = _CS19.index("sky")
PERSON = _CS19.index("person")
RIDER = _CS19.index("rider")
CAR = _CS19.index("car")
TRUCK = _CS19.index("truck")
BUS = _CS19.index("bus")
TRAIN = _CS19.index("train")
MOTORCYCLE = _CS19.index("motorcycle")
BICYCLE = _CS19.index("bicycle")
