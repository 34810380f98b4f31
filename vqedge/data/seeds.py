"""Clips that nothing is trained on: seeds of generated ones, and splits of photos."""

HELD_OUT_SEEDS = range(70_000, 100_000)
SYNTHETIC_SEED = 70_001  # of the suite `synthetic`, unless another is asked for
PHOTOS_SEED = 70_002  # of the suite `photos`, in the same way
CONFIRM_SEED = 70_004  # of the suite `photos-confirm`, in the same way
PARITY_SEED = 90_001  # of the clips that exports and backends are compared on

TEST_SPLIT = "test"  # of photos, as the suite `photos` asks about
CONFIRM_SPLIT = "confirm"  # that nothing is chosen by, as `photos-confirm` asks about
HELD_OUT_SPLITS = (TEST_SPLIT, CONFIRM_SPLIT)
