# opencode-<name>-backup.service: the state, whole, as an archive that is root's. What reads the state is the instance's user, in a sandbox without
# a network: files there are the agent's, and so is whatever runs as its user. What it prints is the archive, in a file that systemd has opened.
{ lib, pkgs }:
{
  name,
  instance,
  common,
  terminals,
  ...
}:
let
  exec = import ./exec.nix { inherit lib; };
  directory = "/var/lib/opencode/backup";
  archive = "${directory}/${name}.tar.gz";
  # Until it is whole.
  part = "${archive}.part";
  path = lib.makeBinPath [
    pkgs.coreutils
    pkgs.gnutar
    pkgs.gzip
    pkgs.sqlite
  ];
  coreutil = lib.getExe' pkgs.coreutils;

  script = pkgs.writeShellScript "opencode-${name}-backup" ''
    set -eu
    PATH=${path}
    database=.local/share/opencode/opencode.db
    options=() whole=()

    # One transaction of a reader's, so that the database is whole whatever is written meanwhile. Without it, or where it is none, the file is taken as it is.
    if [ -f "$database" ] && [ "$(realpath "$database")" = "$(pwd -P)/$database" ]; then
      if sqlite3 -batch -bail -init /dev/null "$database" "VACUUM INTO '/var/tmp/whole.db'" >&2; then
        for kind in "" -wal -shm -journal; do
          options+=("--exclude=./$database$kind")
        done
        # Flags: names of files only, not what links point to.
        options+=(--transform="s,^whole\.db\$,./$database,SH")
        whole=(-C /var/tmp whole.db)
      else
        echo "$database is taken as it is: it cannot be read as a database" >&2
      fi
    fi

    # With status 1 there were files that changed meanwhile, and that is no error.
    tar --create --gzip --sparse --ignore-failed-read --warning=no-file-ignored --anchored --no-wildcards --exclude=./.cache \
      "''${options[@]}" . "''${whole[@]}" || [ $? = 1 ]
  '';
in
{
  description = "Backup of the opencode server, instance ${name}";
  requires = [ "opencode-${name}-paths.service" ];
  after = [ "opencode-${name}-paths.service" ];
  inherit (common) unitConfig;
  # Hardened and limited as the set-up. It has no secrets, and no policy: it has no network.
  serviceConfig =
    removeAttrs common.serviceConfig [ "EnvironmentFile" ]
    // {
      Type = "oneshot";
      WorkingDirectory = instance.stateDir;
      BindPaths = [
        instance.stateDir
        directory
        "${terminals}:/dev/pts"
      ];
      PrivateNetwork = true;
      RestrictAddressFamilies = "none";
      # A file that never ends, or a pipe in the place of one.
      TimeoutStartSec = "1h";
      StandardOutput = "file:${part}";
      # By default it would be in the archive.
      StandardError = "journal";
      # Root's, and so the directory is not one that the rest can enter.
      ExecStartPre = "+${exec [ (coreutil "rm") "-f" part ]}";
      ExecStart = script;
      ExecStartPost = [
        "+${exec [ (coreutil "sync") part ]}"
        "+${exec [ (coreutil "mv") "-f" part archive ]}"
      ];
    };
}
