"""Linear models and pickles of them, for the reader that allows little."""

from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from probes.allow_list import Model, read_model


def fitted(kind: str, dtype: Any = np.float32) -> Any:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 6)).astype(dtype)
    y = x[:, 0] > 0
    match kind:
        case "ridge":
            return Ridge(alpha=np.float64(10), fit_intercept=False).fit(x, y.astype(dtype))
        case "ridge-fortran":  # two targets, whose coefficients stand in Fortran order
            model = Ridge().fit(x, np.stack([y, ~y], axis=1).astype(dtype))
            model.coef_ = np.asfortranarray(model.coef_)
            return model
        case "linear":
            model = LinearRegression(fit_intercept=False).fit(x, y.astype(dtype))
            model.singular_ = None
            return model
        case "logistic":
            return LogisticRegression(C=0.1, fit_intercept=False).fit(x, y)
        case _:
            return make_pipeline(StandardScaler(), LogisticRegression()).fit(x, y.astype(dtype))


def read_bytes(tmp_path: Path, data: bytes) -> Model:
    (tmp_path / "model.joblib").write_bytes(data)
    return read_model(tmp_path / "model.joblib")


RIDGE = b"csklearn.linear_model._ridge\nRidge\n"
FLOAT32 = b"cnumpy\ndtype\nX\x02\x00\x00\x00f4K\x00K\x01\x87R"
