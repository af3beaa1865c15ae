"""Writes this folder's files with whatever scikit-learn is installed: python make.py, once per release.

Models of every kind that a probe of the research project may be, and what they predict for X.
"""

import json
import sys
from pathlib import Path

import joblib
import numpy as np
import sklearn
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

FOLDER = Path(__file__).parent
X = np.sin(np.arange(240, dtype=np.float32)).reshape(40, 6) * np.float32(3)
RATES = ((np.arange(40) * 7) % 11 / 10).astype(np.float32)
CORRECT = (RATES + X[:, 0] / 4 > 0.5).astype(np.float32)


def main() -> None:
    probe = LogisticRegression(C=0.1, fit_intercept=False, max_iter=1000).fit(X, CORRECT)
    models = {
        "ridge": Ridge(alpha=np.float64(10), fit_intercept=False).fit(X, RATES),
        "logistic": probe,
        "platt": LogisticRegression().fit(probe.decision_function(X).reshape(-1, 1), CORRECT),
        "pipeline": make_pipeline(StandardScaler(), LogisticRegression()).fit(X, CORRECT),
    }
    release = ".".join(sklearn.__version__.split(".")[:2])
    expected = {}
    for name, model in models.items():
        joblib.dump(model, FOLDER / f"{release}-{name}.joblib", compress=3 if name == "pipeline" else 0)
        x = X if name != "platt" else X[:, :1]
        outputs = model.predict(x) if name == "ridge" else model.decision_function(x)
        expected[name] = outputs.astype(float).round(6).tolist()
    (FOLDER / f"{release}.json").write_text(json.dumps(expected))


if __name__ == "__main__":
    sys.exit(main())
