"""Settings and keys as the admin API shows them: without secrets."""

import re
import time
from pathlib import Path
from typing import Any, Final

from headwater_router.admin.models import KeyInfo, KeysInfo
from headwater_router.admission.key_file import Key
from headwater_router.admission.keys import Keys
from headwater_router.admission.limits import Use
from headwater_router.config import RouterSettings

HIDDEN: Final = "***"
_CREDENTIALS: Final = re.compile(r"(?<=://)[^/@\s]*@")
_SECRET_SETTING: Final = re.compile(r"(?i)(?<=[?&,;])([\w.-]*(?:key|token|secret|password)[\w.-]*)=[^&,;]*")


def shown_settings(settings: RouterSettings) -> dict[str, Any]:
    """Those that are secret as a whole (`repr=False`) are there or not; in others, what looks like one is hidden."""
    return {
        name: _shown(getattr(settings, name)) if field.repr else (HIDDEN if getattr(settings, name) else None)
        for name, field in RouterSettings.model_fields.items()
    }


def _shown(value: Any) -> Any:
    match value:
        case str():
            return _SECRET_SETTING.sub(rf"\1={HIDDEN}", _CREDENTIALS.sub(f"{HIDDEN}@", value))
        case list():
            return [_shown(each) for each in value]
        case Path():
            return str(value)
        case _:
            return value


def shown_keys(keys: Keys | None) -> KeysInfo:
    if keys is None:
        return KeysInfo(checked=False, refused=None, keys=[])
    now = time.monotonic()
    return KeysInfo(checked=True, refused=keys.refused, keys=[_key(key, use, now) for key, use in keys])


def _key(key: Key, use: Use, now: float) -> KeyInfo:
    limit = key.requests_per_minute
    return KeyInfo(
        name=key.name,
        disabled=key.disabled,
        models=sorted(key.models) + [f"{prefix}*" for prefix in key.prefixes],
        requests_per_minute=limit,
        requests_left=use.bucket.level(limit, now).remaining if limit is not None else None,
        max_concurrent=key.max_concurrent,
        running=use.running,
        own_cache_salt=key.cache_salt is not None,
        admitted=use.admitted,
        refused_rate=use.over_rate,
        refused_concurrency=use.over_concurrency,
        refused_model=use.other_models,
    )
