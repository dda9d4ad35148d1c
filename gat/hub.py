"""The models with `save_pretrained`, `from_pretrained` and `push_to_hub`, from `huggingface_hub`.

`pip install 'gat-attention[hub]'` brings what this module imports; `gat` itself works without it.
"""

from __future__ import annotations

from typing import Any

try:
    from huggingface_hub import ModelCard, PyTorchModelHubMixin
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"gat.hub needs {error.name}: pip install 'gat-attention[hub]'", name=error.name
    ) from error

import gat

_CARD = """\
---
{{ card_data }}
---

# {{ model }}

{{ description | default("A graph attention network.", true) }}

- **Data**: {{ data | default("not said", true) }}
- **Scores**: {% if scores %}{% for name, score in scores.items() %}
  - {{ name }}: {{ score }}{% endfor %}{% else %}not said{% endif %}
- **Settings**:{% for name, value in settings.items() %}
  - {{ name }}: {{ value }}{% endfor %}

```python
# pip install 'gat-attention[hub]'
from gat.hub import {{ model }}

model = {{ model }}.from_pretrained("name or folder of this repository")
```
"""


class _Shared(  # type: ignore[call-arg, unused-ignore]
    PyTorchModelHubMixin,
    library_name="gat-attention",
    tags=["graph-attention", "graph-neural-network"],
    model_card_template=_CARD,
):
    """What a model gets: `save_pretrained` writes parameters, settings and a model card."""

    @classmethod
    def _from_pretrained(cls, *, strict: bool = True, **kwargs: Any) -> Any:
        """Parameters of another model are an error, where the mixin would keep random ones.

        The model comes back in evaluation, as the mixin's newer releases have it.
        """
        return super()._from_pretrained(strict=strict, **kwargs).eval()

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        kwargs.setdefault("settings", self._hub_mixin_config or {})
        return super().generate_model_card(*args, model=type(self).__name__, **kwargs)


class GAT(_Shared, gat.GAT):
    """`gat.GAT` that is saved and loaded with its settings, in a folder or on the hub.

    `save_pretrained(folder, model_card_kwargs={"data": ..., "scores": {...}})` writes the
    parameters as safetensors, the settings as config.json, and a card that tells both, the data
    and the scores; `from_pretrained(folder or name)` builds the model again. Arguments are those
    of `gat.GAT`.

    Raises:
        ModuleNotFoundError: at import, without the extra `gat-attention[hub]`.
        RuntimeError: from `from_pretrained`, if the parameters are those of another model.

    >>> import tempfile, torch
    >>> model = GAT(in_channels=4, hidden_channels=8, num_layers=2, out_channels=3, heads=2)
    >>> folder = tempfile.mkdtemp()
    >>> _ = model.save_pretrained(
    ...     folder, model_card_kwargs={"data": "the karate club", "scores": {"accuracy": "97 %"}}
    ... )
    >>> again = GAT.from_pretrained(folder)
    Loading weights from local directory
    >>> all(torch.equal(*pair) for pair in zip(again.parameters(), model.parameters(), strict=True))
    True
    """


class GATv2(_Shared, gat.GATv2):
    """`gat.GATv2`, saved and loaded as `gat.hub.GAT` is."""


class GraphTransformer(_Shared, gat.GraphTransformer):
    """`gat.GraphTransformer`, saved and loaded as `gat.hub.GAT` is."""


class AGNN(_Shared, gat.AGNN):
    """`gat.AGNN`, saved and loaded as `gat.hub.GAT` is."""
