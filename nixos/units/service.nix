# What the server's unit and its setup unit have in common.
{
  config,
  lib,
  pkgs,
}:
{
  name,
  instance,
  files,
}:
let
  inherit (lib) mkForce optionalAttrs;
  inherit (instance) networkIsolation resources;
  instances = import ../instances.nix { inherit config lib; };
  keyed = import ../keys/keyed.nix { inherit config lib; };
  sandbox = import ./sandbox.nix { inherit lib; };
  exec = import ./exec.nix { inherit lib; };

  environmentFiles = instances.environmentFiles instance;

  # Values are what they are, to systemd too.
  literal = lib.replaceStrings [ "%" ] [ "%%" ];

  # A setting that is null is not written.
  given = lib.filterAttrs (_: value: value != null);
in
{
  # The working directory's systemd adds by itself.
  unitConfig.RequiresMountsFor = [
    instance.stateDir
    (instances.terminals name)
  ];

  # The module's own come first; systemd reads files after these.
  environment = {
    HOME = instance.stateDir;
    # The user's own refuses a login, and is what ssh's ProxyCommand, tmux and the agent's shell would run.
    SHELL = lib.getExe pkgs.bash;
    # The package is the system's to update.
    OPENCODE_DISABLE_AUTOUPDATE = "1";
  }
  // optionalAttrs (instances.failsFast instance) (
    # npm takes its variables in any case.
    lib.filterAttrs (name: _: !lib.elem name (map lib.toLower (lib.attrNames instance.environment))) (
      import ./fail-fast.nix { wgetrc = "${files.at}/wgetrc"; }
    )
  )
  // lib.mapAttrs (_: value: mkForce (literal value)) instance.environment;

  # By its path in /etc, for an upgrade is not to change the unit; the agent asks it `why`.
  path = instance.path ++ lib.optional networkIsolation.enable (dirOf (dirOf instances.attachProgram));

  serviceConfig =
    sandbox {
      inherit instance files;
      inherit (instances) attachProgram;
      terminals = instances.terminals name;
      told = if instances.tells instance then instances.told name else null;
      tokens = keyed.tokens name instance;
    }
    // given {
      MemoryMax = resources.memoryMax;
      MemoryHigh = resources.memoryHigh;
      CPUQuota = resources.cpuQuota;
      CPUWeight = resources.cpuWeight;
      TasksMax = resources.tasksMax;
    }
    // {
      User = instance.user;
      Group = instance.group;
      WorkingDirectory = instance.directory;
      LogNamespace = instances.logNamespace name;
      LimitNOFILE = "1024:${toString resources.openFilesMax}";
      # What a crash leaves would be the host's, secrets included.
      LimitCORE = 0;
      # Programs that do not want to end are not waited for longer.
      TimeoutStopSec = 20;
      # It would mount a file of the cgroup into a hierarchy that does not show it.
      MemoryPressureWatch = "skip";
    }
    // optionalAttrs (instance.extraGroups != [ ]) { SupplementaryGroups = instance.extraGroups; }
    // optionalAttrs (environmentFiles != [ ]) { EnvironmentFile = environmentFiles; }
    // optionalAttrs networkIsolation.enable {
      # First, whatever else is added, before anything of the instance runs. It fails, and the unit with it, when the policy is not in force.
      # A daemon that comes back within a minute does no harm.
      ExecStartPre = lib.mkOrder 0 [
        "+${
          exec [
            instances.attachProgram
            "attach"
            "--timeout"
            "60"
            name
          ]
        }"
      ];
      # Of all that sets variables this has the last word.
      UnsetEnvironment = import ./loader-variables.nix;
    };
}
