"""syncd: watches mounted secrets, proves what changed, and tells everyone who must know."""

__version__ = "0.1.0"
