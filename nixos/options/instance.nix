# What an instance is, and whose.
{
  lib,
  name,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  inherit (import ../types.nix { inherit lib; }) accountName hostPath;

  userName = import ../user-name.nix { inherit lib; } name;

  orPositive = pattern: types.nullOr (types.either types.ints.positive (types.strMatching pattern));
  bytes = orPositive "[0-9]+[KMGT]?|[0-9]+%|infinity";
in
{
  options = {
    enable = mkOption {
      type = types.bool;
      default = true;
      description = "Whether this server runs. What it has in its state directory stays when it does not.";
    };

    package = mkOption {
      type = types.package;
      default = pkgs.opencode;
      defaultText = lib.literalExpression "pkgs.opencode";
      description = "opencode, of major version 1. The main program is `opencode`.";
    };

    directory = mkOption {
      type = types.nullOr hostPath;
      # Null is what nobody wrote.
      default = null;
      defaultText = lib.literalMD "none: it must be set";
      apply =
        directory:
        if directory != null then
          directory
        else
          throw "services.opencode.instances.${name}.directory is not set, and a server needs a project to work in. Set it to the project's directory, as in `directory = \"/srv/${name}\";`.";
      example = "/srv/my-project";
      description = ''
        The project: the server's working directory. It must exist and belong to {option}`user`; the module never creates or changes it.
        **Everything in it can be read and changed by the agent**, and is all that can be besides {option}`stateDir` and what {option}`sandbox` adds.
      '';
    };

    stateDir = mkOption {
      type = hostPath;
      default = "/var/lib/opencode/instance-state/${name}";
      defaultText = "/var/lib/opencode/instance-state/<name>";
      description = ''
        The server's `$HOME`: sessions, credentials that it was given, caches, and links to its configuration. Created with mode 0700 for
        {option}`user`. No two instances share one, and it is apart from {option}`directory`: what is in `directory` can
        be committed, what is in here must not be.
      '';
    };

    user = mkOption {
      type = accountName "user";
      default = userName;
      defaultText = "opencode-<name>";
      description = ''
        The user that the server runs as. The default is created; another one must be declared by you, in {option}`users.users`. Instances that share a user can
        signal and, by `/proc`, inspect each other, and read each other's files where both are visible. Under
          {option}`networkIsolation` everything that this user runs on the host has the instance's list in nftables. Not `root`.
      '';
    };

    group = mkOption {
      type = accountName "group";
      default = userName;
      defaultText = "opencode-<name>";
      description = "The group that the server runs as. The default is created; another one must be declared by you, in {option}`users.groups`.";
    };

    extraGroups = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "developers" ];
      description = ''
        Groups that the server has besides {option}`group`, declared in {option}`users.groups`. A group such as `docker` or `libvirtd` is as good as root, if its socket can
        be reached.
      '';
    };

    resources = {
      memoryMax = mkOption {
        type = bytes;
        default = "75%";
        example = "4G";
        description = ''
          Memory that the server and everything it starts may take together, what is in `/dev/shm` included; beyond it the kernel kills one of them. The default
          leaves the host the rest; several instances take less each, or together they can have all. See `MemoryMax=` in
          {manpage}`systemd.resource-control(5)`; null is no limit.
        '';
      };
      memoryHigh = mkOption {
        type = bytes;
        default = null;
        example = "3G";
        description = "Memory beyond which they are slowed down. See `MemoryHigh=`.";
      };
      cpuQuota = mkOption {
        type = types.nullOr (types.strMatching "[1-9][0-9]*%");
        default = null;
        example = "200%";
        description = "Processor time that they may take together; 100% is one processor. See `CPUQuota=`.";
      };
      cpuWeight = mkOption {
        type = types.nullOr (types.ints.between 1 10000);
        default = null;
        example = 50;
        description = "Share of processor time when others want it too; 100 is everybody's. See `CPUWeight=`.";
      };
      tasksMax = mkOption {
        type = orPositive "[0-9]+%|infinity";
        default = 4096;
        example = 512;
        description = "Processes and threads that they may have together. See `TasksMax=`; null is systemd's own, a share of what the kernel has.";
      };
      openFilesMax = mkOption {
        type = types.ints.between 1024 1048576;
        default = 65536;
        description = "Files, sockets among them, that each process may have open. They begin with 1024, and may have that raised so far. See `LimitNOFILE=`.";
      };
      sockets = mkOption {
        type = types.ints.between 1 1000000;
        default = 4096;
        example = 512;
        description = ''
          IP sockets that the server and everything it starts may have open together, where {option}`networkIsolation.enable` is on; accepted connections are not
          counted. Each can take one of the host's ephemeral ports, of which there are 28,232 by default. One more fails with `EPERM`, and is in the journal.
        '';
      };
      sharedMemoryMax = mkOption {
        type = types.strMatching "[1-9][0-9]*([KMG]|%)";
        default = "1G";
        example = "256M";
        description = "What `/dev/shm` holds, which is memory; a part of {option}`memoryMax`.";
      };
      terminalsMax = mkOption {
        type = types.ints.between 1 3072;
        default = 256;
        description = "Pseudo-terminals that they may have open together, of the 4096 that the kernel has for all by default (`kernel.pty.max`).";
      };
      journalMax = mkOption {
        type = types.strMatching "[1-9][0-9]*[KMG]";
        default = "64M";
        example = "1G";
        description = ''
          What the journal of the server's own output holds, at least `8M`; what is older goes. It is a journal namespace of its own, so that a server that says much pushes out
          nothing but what it said itself: `journalctl --namespace=opencode-<name>`.
        '';
      };
    };
  };
}
