# Settings that `sandbox.extraConfig` cannot change under `networkIsolation`.
[
  # They would run before the policy is attached, or when it could not be.
  "ExecCondition"
  "ExecStartPre"
  "ExecStopPost"
  # They would move the unit's cgroup, or hand it to somebody who can leave it.
  "Delegate"
  "DelegateSubgroup"
  "PAMName"
  "ProtectControlGroups"
  "Slice"
  # Without the empty root the host's sockets are there, and with them whoever has a network.
  "RootDirectory"
  "RootImage"
  "TemporaryFileSystem"
  # The second lock is the user's.
  "DynamicUser"
  "User"
  # With these there are sockets below IP, of other families, or from outside the cgroup.
  "AmbientCapabilities"
  "CapabilityBoundingSet"
  "NoNewPrivileges"
  "OpenFile"
  "RestrictAddressFamilies"
  "Sockets"
  "StandardInput"
]
