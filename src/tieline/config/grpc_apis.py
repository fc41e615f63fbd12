"""The RPCs of Dapr's gRPC API, all of them, in the groups by which a Configuration opens and closes them (S-57)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

DAPR_SERVICE: Final = "dapr.proto.runtime.v1.Dapr"
RUNTIME_PREFIX: Final = b"/dapr.proto.runtime."
"""What allow and deny lists are about; other services are the apps' own (S-58, S-59)."""

GROUPS: Final[Mapping[str, tuple[str, ...]]] = {
    group: tuple(names.split())
    for group, names in {
        "invoke/v1": "InvokeService",
        "metadata/v1": "GetMetadata SetMetadata",
        "shutdown/v1": "Shutdown",
        "state/v1": "GetState GetBulkState SaveState DeleteState DeleteBulkState ExecuteStateTransaction",
        "state/v1alpha1": "QueryStateAlpha1",
        "publish/v1": "PublishEvent BulkPublishEvent",
        "publish/v1alpha1": "BulkPublishEventAlpha1",
        "subscribe/v1alpha1": "SubscribeTopicEventsAlpha1",
        "bindings/v1": "InvokeBinding",
        "secrets/v1": "GetSecret GetBulkSecret",
        "configuration/v1": "GetConfiguration SubscribeConfiguration UnsubscribeConfiguration",
        "configuration/v1alpha1": (
            "GetConfigurationAlpha1 SubscribeConfigurationAlpha1 UnsubscribeConfigurationAlpha1"
        ),
        "lock/v1alpha1": "TryLockAlpha1",
        "unlock/v1alpha1": "UnlockAlpha1",
        "crypto/v1alpha1": "EncryptAlpha1 DecryptAlpha1",
        "subtlecrypto/v1alpha1": (
            "SubtleGetKeyAlpha1 SubtleEncryptAlpha1 SubtleDecryptAlpha1 SubtleWrapKeyAlpha1 SubtleUnwrapKeyAlpha1"
            " SubtleSignAlpha1 SubtleVerifyAlpha1"
        ),
        "actors/v1": (
            "RegisterActorTimer UnregisterActorTimer RegisterActorReminder UnregisterActorReminder"
            " UnregisterActorRemindersByType ListActorReminders GetActorState GetActorReminder"
            " ExecuteActorStateTransaction InvokeActor"
        ),
        "actors/v1alpha1": "SubscribeActorEventsAlpha1",
        "workflows/v1alpha1": (
            "StartWorkflowAlpha1 GetWorkflowAlpha1 PurgeWorkflowAlpha1 TerminateWorkflowAlpha1 PauseWorkflowAlpha1"
            " ResumeWorkflowAlpha1 RaiseEventWorkflowAlpha1"
        ),
        "workflows/v1beta1": (
            "StartWorkflowBeta1 GetWorkflowBeta1 PurgeWorkflowBeta1 TerminateWorkflowBeta1 PauseWorkflowBeta1"
            " ResumeWorkflowBeta1 RaiseEventWorkflowBeta1"
        ),
        "jobs/v1": "ScheduleJob GetJob DeleteJob DeleteJobsByPrefix ListJobs",
        "jobs/v1alpha1": (
            "ScheduleJobAlpha1 GetJobAlpha1 DeleteJobAlpha1 DeleteJobsByPrefixAlpha1 ListJobsAlpha1"
        ),
        "conversation/v1alpha1": "ConverseAlpha1",
        "conversation/v1alpha2": "ConverseAlpha2",
    }.items()
}  # fmt: skip


def path_of(name: str) -> bytes:
    """Return the path under which an RPC of the Dapr service is called."""
    return f"/{DAPR_SERVICE}/{name}".encode()


ALL_PATHS: Final = frozenset(path_of(name) for names in GROUPS.values() for name in names)
