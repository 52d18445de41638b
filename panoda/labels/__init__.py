"""Label spaces: class names, palettes and remaps; ``spaces`` has the code, ``built_in`` a file of each."""

from panoda.labels.spaces import (
    IGNORE_INDEX,
    SPACES,
    LabelSpace,
    RemapReport,
    get_label_space,
    is_space_file,
    remap_report,
    remap_table,
    remap_targets,
    stored_space,
)
