"""Which revisions a node remembers. Pure."""

from collections.abc import Collection, Mapping

from skep import pb

LAST = 2  # of each service with tasks here: what runs, and what a rollback would bring back


def kept(known: Mapping[str, pb.Revision], *, used: Collection[str]) -> list[str]:
    """IDs of the known revisions to remember; `used` are those that tasks here name.

    The last ones of their services are remembered beside them, for a rollback may need their images.
    """
    last: dict[str, list[pb.Revision]] = {known[each].service_id: [] for each in used if each in known}
    for revision in sorted(known.values(), key=lambda each: each.number, reverse=True):
        of_service = last.get(revision.service_id)
        if of_service is not None and len(of_service) < LAST:
            of_service.append(revision)
    wanted = {revision.id for of_service in last.values() for revision in of_service}
    return [each for each in known if each in used or each in wanted]
