"""Networks that ranks share: when their hooks are taken off, and what is asked of them before."""

from __future__ import annotations

from hybridiff.sharding.shared import SharedNetworks
from support.networks import NETWORKS


def test_hooks_stay_where_nothing_was_compiled_since() -> None:
    """A module without a hook may have been compiled before: its graph is no news."""
    network, networks = NETWORKS["sd3"](), SharedNetworks()
    network.time_text_embed.compile()
    network.transformer_blocks[0].compile()
    sharded = networks.of(network)
    assert not networks.unhook(is_for_all=False)
    assert networks.of(network) is sharded
    network.transformer_blocks[0].compile()
    assert networks.unhook(is_for_all=False)
    assert networks.of(network) is not sharded
    assert networks.unhook()
    assert not networks.unhook()
