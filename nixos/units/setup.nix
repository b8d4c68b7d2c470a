# opencode-<name>-setup.service: the state directory, and the scripts around that.
{ lib, pkgs }:
{
  name,
  instance,
  files,
  common,
  hasTable,
  keyless,
  ...
}:
let
  inherit (lib) optional optionals;
  locks = optionals instance.networkIsolation.enable [
    "opencode-egress.service"
    "nftables.service"
  ];

  # Before anything is mounted, and after what makes the token.
  paths = "opencode-${name}-paths.service";

  script = what: text: pkgs.writeShellScript "opencode-${name}-${what}" text;
  hook = what: text: optional (text != null && text != "") (script what "set -eu\n${text}");

  # Links point to `files.at`, not into the store, so that they stay as they are when the configuration changes.
  setup = script "setup" ''
    set -eu
    PATH=${
      lib.makeBinPath [
        pkgs.coreutils
        pkgs.findutils
      ]
    }
    state=${lib.escapeShellArg instance.stateDir}
    files=${lib.escapeShellArg files.at}
    config=$state/.config/opencode

    # A link into the store is nobody's own file: another module or tool has made it of a configuration, which may be gone.
    replace() {
      for place; do
        target=$(readlink "$place") || continue
        case $target in
          ${builtins.storeDir}/*)
            if rm "$place"; then
              echo "$place was a link to $target, which this configuration did not make; it is replaced." >&2
            fi
            ;;
        esac
      done
    }

    # A directory that is to be there, for the user to use: whatever is in its place, and cannot be used so, is set aside.
    directory() {
      replace "$1"
      if [ -d "$1" ]; then
        [ -r "$1" ] && [ -w "$1" ] && [ -x "$1" ] || chmod u+rwx "$1" 2>/dev/null && return
      fi
      if [ -e "$1" ] || [ -L "$1" ]; then
        mv --backup=numbered --no-target-directory "$1" "$1.set-aside"
        echo "$1 is no directory to write to, and is set aside as $1.set-aside" >&2
      fi
      mkdir "$1"
    }
    for needed in "" .config .config/opencode .cache .local .local/share .local/share/opencode .local/state; do
      directory "$state/$needed"
    done

    # Links to what is declared no more.
    if [ -d "$config" ]; then
      # What the agent has closed it cannot look into.
      find "$config" -type l -lname "$files/*" -xtype l -delete || true
    fi

    link() {
      replace "$(dirname "$(dirname "$2")")" "$(dirname "$2")" "$2"
      if [ "$(readlink "$2")" = "$1" ]; then
        return
      elif [ -e "$2" ] || [ -L "$2" ] || ! mkdir -p "$(dirname "$2")" || ! ln -s "$1" "$2"; then
        echo "$2 is kept as it is; what the configuration has for it is not used. Remove it to use that." >&2
      fi
    }

    link "$files/opencode.json" "$config/opencode.json"
    for kind in agents commands; do
      for file in "$files/$kind"/*; do
        name=$(basename "$file")
        if [ -d "$file" ]; then
          link "$file" "$config/$kind/$name"
        elif [ -e "$file" ]; then
          link "$file" "$config/$kind/$name.md"
        fi
      done
    done
    for file in "$files/skills"/*; do
      name=$(basename "$file")
      if [ -d "$file" ]; then
        link "$file" "$config/skills/$name"
      elif [ -e "$file" ]; then
        link "$file" "$config/skills/$name/SKILL.md"
      fi
    done
  '';
in
{
  description = "State of the opencode server, instance ${name}";
  # Both locks. Here it is Requires=: this unit is over when the server starts, so what becomes of them later does not stop it.
  # A daemon whose first start fails is waited for, by its RestartMode=.
  requires = locks ++ [ paths ];
  after = [ "network.target" ] ++ locks ++ [ paths ];

  inherit (common) environment path unitConfig;

  serviceConfig = common.serviceConfig // {
    # Not RemainAfterExit=: with it, restarting the daemon would stop this unit, and so the server.
    Type = "oneshot";
    ExecStart =
      optional (instance.providers != { }) (keyless { inherit name instance; })
      ++ hook "pre-init" instance.preInitScript
      ++ [ setup ]
      ++ hook "post-init" instance.postInitScript;
  }
  # As root, whom nftables answers; after `attach`, which stays first.
  // lib.optionalAttrs instance.networkIsolation.enable {
    ExecStartPre = lib.mkOrder 0 (common.serviceConfig.ExecStartPre.content ++ [ "+${hasTable}" ]);
  };
}
