# What each unit of the module's own programs has, which run nothing of an agent's; each has more, for what it is there to do. (Those of servers are in
# `units/sandbox.nix`: there each setting is weighed against what agents do.)
{
  NoNewPrivileges = true;
  ProtectSystem = "strict";
  DevicePolicy = "closed";
  ProtectClock = true;
  ProtectHostname = true;
  ProtectKernelLogs = true;
  ProtectKernelModules = true;
  ProtectControlGroups = true;
  RestrictNamespaces = true;
  RestrictRealtime = true;
  RestrictSUIDSGID = true;
  LockPersonality = true;
  MemoryDenyWriteExecute = true;
  UMask = "0077";
  SystemCallArchitectures = "native";
  SystemCallErrorNumber = "EPERM";
}
