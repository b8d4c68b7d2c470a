# A command of an instance's set-up: fails where a file of the environment has the key that opencode-keys.service is to have alone. What is in such a file
# only systemd knows.
{
  lib,
  pkgs,
  keyed,
}:
{ name, instance }:
pkgs.writeShellScript "opencode-${name}-keyless" ''
  set -eu
  bad=0
  look() {
    if [ -n "''${!1+set}" ]; then
      echo "$1 is in the environment of instance ${name}, so the agent has the key of provider $2, for which there is \`providers.$2\`. Remove it from \`environmentFile\`. The server does not start." >&2
      bad=1
    fi
  }
  ${lib.concatMapStrings (
    provider: lib.concatMapStrings (variable: "look ${variable} ${provider}\n") (keyed.variables instance provider)
  ) (lib.attrNames instance.providers)}exit $bad
''
