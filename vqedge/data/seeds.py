"""Clips that nothing is trained on: seeds of generated ones, and a split of photos."""

SYNTHETIC_SEED = 70_001  # of the suite `synthetic`
PHOTOS_SEED = 70_002  # of the suite `photos`
PARITY_SEED = 90_001  # of the clips that exports and backends are compared on

TEST_SPLIT = "test"  # of photos, as the suite `photos` asks about
HELD_OUT_SEEDS = (SYNTHETIC_SEED, PHOTOS_SEED, PARITY_SEED)
