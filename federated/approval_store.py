"""What a hospital keeps of the studies it approved."""

import sqlalchemy as sa

from coop.db import metadata

approved = sa.Table(
    "approved",
    metadata,
    sa.Column("study_sha256", sa.String(64), primary_key=True),
    sa.Column("study_id", sa.String(64), nullable=False, index=True),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("study", sa.Text, nullable=False),
    sa.Column("approval", sa.Text, nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("revoked_at", sa.BigInteger),
)
"""Studies this hospital approved: both signed documents, as canonical text."""
