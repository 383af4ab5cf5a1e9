"""The software bill of materials of an image, as CycloneDX 1.6: what pip and dpkg installed, from the image's layers.

Libraries inside of wheels, such as the OpenMP that PyTorch brings, are parts of their package there and not listed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from email.message import Message
from email.parser import HeaderParser
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.factory.license import LicenseFactory
from cyclonedx.model import Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import License
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

from ava_core.errors import AvaError
from pipelines.images.layers import Contents

LONGEST_LICENSE = 80
"""Characters; what is longer is a licence's whole text, which the field isn't for."""


def build(*, name: str, version: str, identity: str, created: str, contents: Contents) -> str:
    """The bill as JSON; the same image gives the same bytes.

    Args:
        name: the image's name, without tag.
        version: its version.
        identity: its id.
        created: date of the code, ISO 8601.
        contents: what its layers hold.

    Raises:
        AvaError: the result breaks CycloneDX's schema.
    """
    bom = Bom(serial_number=uuid5(NAMESPACE_URL, identity))
    bom.metadata.timestamp = datetime.fromisoformat(created).astimezone(UTC)
    bom.metadata.component = Component(
        type=ComponentType.CONTAINER,
        name=name,
        version=version,
        bom_ref=name,
        properties=[Property(name="ava:image:id", value=identity)],
    )
    components = [*python_components(contents.python_packages), *debian_components(contents.dpkg_status)]
    for component in components:
        bom.components.add(component)
    bom.register_dependency(bom.metadata.component, components)
    text = JsonV1Dot6(bom).output_as_string(indent=1)
    fault = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if fault:
        raise AvaError(f"{name}: the bill of materials breaks CycloneDX's schema: {str(fault.data).splitlines()[0]}")
    return text + "\n"


def python_components(metadata: Iterable[str]) -> list[Component]:
    """A component for each distribution, from its METADATA (core metadata specification of packaging.python.org)."""
    found = []
    for text in metadata:
        fields = HeaderParser().parsestr(text)
        name, version = re.sub(r"[-_.]+", "-", fields["Name"]).lower(), fields["Version"]
        found.append(
            _component(name, version, PackageURL("pypi", None, name, version), fields["Summary"], _licenses(fields))
        )
    return found


def debian_components(status: str) -> list[Component]:
    """A component for each package in dpkg's list. Its licences lie in the image, in usr/share/doc/NAME/copyright."""
    found = []
    for entry in status.strip().split("\n\n") if status.strip() else []:
        fields = HeaderParser().parsestr(entry)
        if not fields["Status"].endswith(" installed"):
            continue
        name, version = fields["Package"], fields["Version"]
        url = PackageURL("deb", "debian", name, version, {"arch": fields["Architecture"]})
        summary = fields["Description"]
        found.append(_component(name, version, url, summary.splitlines()[0] if summary else None, []))
    return found


def _component(name: str, version: str, url: PackageURL, summary: str | None, licenses: list[License]) -> Component:
    return Component(
        type=ComponentType.LIBRARY,
        name=name,
        version=version,
        purl=url,
        bom_ref=str(url),
        description=summary,
        licenses=licenses,
    )


def _licenses(fields: Message) -> list[License]:
    given = fields["License-Expression"] or fields["License"]
    if not given or len(given) > LONGEST_LICENSE or given.upper() == "UNKNOWN":
        return []
    return [LicenseFactory().make_from_string(" ".join(given.split()))]
