"""Where everything lies in the artifact store. Knows paths, not contents.

store/
    raw/<name>/               what a generator or an operator put there
    datasets/<name>/          items.parquet, interactions.parquet, images/, report.{json,md}
    features/<config>/        image/, text/, cf/: row-aligned with the dataset's items
    pooled/<hash>/            pooled parts, kept for trainings that share them; may be deleted
    features/cache/           one folder an encoder, keyed by content hash
    models/                   converted weights of the small models
    checkpoints/<id>/         what training made; the file <config>.latest names the one it made or found last
    evaluations/<checkpoint>/ tables and figures of a checkpoint
    images/                   pictures by content hash, shared by all catalogs
    catalogs/<version>/       what is served; CURRENT names one
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Store:
    root: Path

    def raw(self, name: str) -> Path:
        return self.root / "raw" / name

    def dataset(self, name: str) -> Path:
        return self.root / "datasets" / name

    def features(self, config_name: str, signal: str) -> Path:
        return self.root / "features" / config_name / signal

    @property
    def feature_cache(self) -> Path:
        return self.root / "features" / "cache"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def pooled(self) -> Path:
        """Pooled parts by what they were trained of; may be deleted."""
        return self.root / "pooled"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def evaluations(self) -> Path:
        return self.root / "evaluations"

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def catalogs(self) -> Path:
        return self.root / "catalogs"
