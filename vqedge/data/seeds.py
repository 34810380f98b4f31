"""Seeds of generated clips that nothing is trained on."""

SYNTHETIC_SEED = 70_001  # of the suite `synthetic`
PHOTOS_SEED = 70_002  # of the suite `photos`
PARITY_SEED = 90_001  # of the clips that exports and backends are compared on

HELD_OUT_SEEDS = (SYNTHETIC_SEED, PHOTOS_SEED, PARITY_SEED)
