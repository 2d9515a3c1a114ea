"""What a person has decided about single devices' offers, kept over a restart."""

from __future__ import annotations

import logging
import uuid
from typing import Literal, TypeAlias

import msgspec

from sdnet_core import PluginContext, RemoteDevice
from sdnet_core.errors import StorageError

__all__ = ["DevicePolicy", "Policies", "Policy"]

logger = logging.getLogger(__name__)

Policy: TypeAlias = Literal["ask", "accept-trusted", "never"]
_NAME = "policies"


class DevicePolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How one device's offers are answered.

    :param policy: what counts.
    :param own: whether it was set for this device; otherwise it is the configured one.
    """

    device_id: str
    device_name: str
    policy: Policy
    own: bool


class Policies:
    """The policies of single devices, over the configured one.

    :param default: the configured one.
    """

    def __init__(self, ctx: PluginContext, default: Policy) -> None:
        self._ctx = ctx
        self.default = default
        self._own: dict[uuid.UUID, Policy] = {}

    async def load(self) -> None:
        """Read what was set. What cannot be read makes every device ask, which is the cautious side."""
        try:
            data = await self._ctx.storage.load(_NAME)
            if data is not None:
                self._own = msgspec.msgpack.decode(data, type=dict[uuid.UUID, Policy])
        except (StorageError, msgspec.MsgspecError) as error:
            logger.error("the policies of single devices cannot be read, all ask: %s", error)
            self.default = "ask" if self.default == "accept-trusted" else self.default

    def of(self, device_id: uuid.UUID) -> Policy:
        """What counts for a device."""
        return self._own.get(device_id, self.default)

    async def set(self, device_id: uuid.UUID, policy: Policy | None) -> DevicePolicy:
        """Decide for a device; it is kept when this returns.

        :param policy: None for the configured one.
        :raises DeviceNotFoundError: it is not paired.
        :raises StorageError: it could not be kept; nothing changed.
        """
        device = self._ctx.get_device(device_id)
        paired = {known.device_id for known in self._ctx.devices()}
        own = {known: value for known, value in self._own.items() if known in paired and known != device_id}
        if policy is not None:
            own[device_id] = policy
        await self._ctx.storage.store(_NAME, msgspec.msgpack.encode(own))
        self._own = own
        return self.describe(device)

    def all(self) -> list[DevicePolicy]:
        """What counts for every paired device, by name."""
        return [self.describe(device) for device in self._ctx.devices()]

    def describe(self, device: RemoteDevice) -> DevicePolicy:
        """What counts for a device, and whether it was set for it."""
        return DevicePolicy(
            device_id=str(device.device_id),
            device_name=device.name,
            policy=self.of(device.device_id),
            own=device.device_id in self._own,
        )
