# opencode-<name>-paths.service: looks, before anything of an instance is mounted, where the paths lead that it names. systemd mounts whatever
# is there, and follows links as root.
{ config, lib, pkgs }:
{
  name,
  instance,
}:
let
  inherit (lib) escapeShellArgs concatMapStrings;
  instances = import ../instances.nix { inherit config lib; };
  paths = import ../paths.nix { inherit config lib; };
  mounted = paths.mounted name instance;
  keyed = import ../keys/keyed.nix { inherit config lib; };
  keys = lib.optional (instance.providers != { }) "opencode-keys.service";

  line = words: "${escapeShellArgs words}\n";
  called = path: instances.option path.name path.setting;
in
{
  description = "Paths of the opencode server, instance ${name}";
  unitConfig.RequiresMountsFor = [
    instance.directory
    instance.stateDir
  ];
  # What makes the token.
  wants = keys;
  after = keys;
  # The set-up's limit is enough.
  startLimitIntervalSec = 0;
  serviceConfig = import ../hardening.nix // {
    # Not RemainAfterExit=: it is to look before each start.
    Type = "oneshot";
    ExecStart = pkgs.writeShellScript "opencode-${name}-paths" ''
      set -eu
      PATH=${lib.makeBinPath [ pkgs.coreutils ]}
      places=() owners=() bad=0

      # Sets `real` to where a path leads, and fails where somebody but root has a say in that.
      follow() {
        option=$1 path=$2
        local rest=$2 part target owner links=0
        real=
        while [ -n "$rest" ]; do
          rest=''${rest#/}
          part=''${rest%%/*}
          rest=''${rest#"$part"}
          case $part in
            "" | .) continue ;;
            ..)
              real=''${real%/*}
              continue
              ;;
          esac
          for index in "''${!places[@]}"; do
            case $real/ in
              "''${places[index]}"/*)
                why="$real/$part is in ''${owners[index]} (''${places[index]}), which an agent may change. Name a path that does not lead there"
                return 1
                ;;
            esac
          done
          if [ -L "$real/$part" ]; then
            owner=$(stat -c %U "$real/$part")
            links=$((links + 1))
            if [ "$owner" != root ]; then
              why="$real/$part is a link that $owner made, and root follows none but root's own. Name the place that it leads to"
              return 1
            elif [ $links -gt 40 ]; then
              why="too many links; $real/$part is one of them"
              return 1
            fi
            target=$(readlink "$real/$part")
            case $target in /*) real= ;; esac
            rest=$target$rest
          else
            real=$real/$part
          fi
        done
        if [ ! -e "$real/" ] && [ ! -e "$real" ]; then
          why="it does not exist. Create it, or remove it from the option"
          return 2
        fi
      }

      # What agents may change. Where such a path itself is wrong, its own instance says so.
      place() {
        if follow "$1" "$2"; then
          found+=("$real") names+=("$1")
        fi
      }
      found=() names=()
      ${concatMapStrings (path: line [ "place" (called path) path.path ]) paths.writable}
      places=("''${found[@]}") owners=("''${names[@]}")

      mounted() {
        status=0
        follow "$1" "$2" || status=$?
        if [ $status = 0 ] && [ "$3" = directory ] && [ ! -d "$real" ]; then
          status=1 why="it is no directory. Put one in its place, or name another"
        fi
        if [ $status = 1 ] || [ $status = 2 ] && [ "$3" != optional ]; then
          echo "$1: $2 is not mounted: $why. The server does not start." >&2
          bad=1
        fi
      }
      ${concatMapStrings (
        path:
        line [
          "mounted"
          (called path)
          path.path
          (
            if path.setting == "directory" then
              "directory"
            else if path.optional then
              "optional"
            else
              "required"
          )
        ]
      ) mounted}
      ${concatMapStrings (token: ''
        if [ ! -e ${token} ]; then
          echo "${instances.option name "providers"}: opencode-keys.service has made no token for the instance; \`systemctl status opencode-keys\` says why. The server does not start." >&2
          bad=1
        fi
      '') (keyed.tokens name instance)}exit $bad
    '';
    # Root's, to look into every directory; it changes nothing, and sees the host as systemd does when it mounts.
    CapabilityBoundingSet = "CAP_DAC_READ_SEARCH";
    ProtectProc = "invisible";
    ProtectKernelTunables = true;
    PrivateNetwork = true;
    PrivateIPC = true;
    IPAddressDeny = "any";
    RestrictAddressFamilies = "none";
    KeyringMode = "private";
    SystemCallFilter = [
      "@system-service"
      "~@privileged @resources @keyring @aio"
    ];
  };
}
