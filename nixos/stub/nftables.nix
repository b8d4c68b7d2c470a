# networking.nftables as NixOS has it: a reload deletes and makes again the tables that it knows, in one transaction, and leaves others alone.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  option = default: type: mkOption { inherit default type; };
  cfg = config.networking.nftables;

  table =
    { name, ... }:
    {
      options = {
        enable = option true types.bool;
        name = option name types.str;
        family = mkOption { type = types.enum [ "ip" "ip6" "inet" "arp" "bridge" "netdev" ]; };
        content = mkOption { type = types.lines; };
      };
    };
  tables = lib.filter (table: table.enable) (lib.attrValues cfg.tables);

  nft = lib.getExe pkgs.nftables;
  # What the tables that were made last are deleted by. They may be others than those of this configuration.
  last = "/var/lib/nftables/deletions.nft";
  deletions =
    if cfg.flushRuleset then
      "flush ruleset\n"
    else
      lib.concatMapStrings (table: ''
        table ${table.family} ${table.name}
        delete table ${table.family} ${table.name}
      '') tables;
  rules = pkgs.writeScript "nftables-rules" ''
    #!${nft} -f
    include "${last}"
    ${deletions}${lib.concatMapStrings (table: ''
      table ${table.family} ${table.name} {
      ${table.content}
      }
    '') tables}'';
  ensure = pkgs.writeShellScript "nftables-ensure-deletions" "touch ${last}";
  save = pkgs.writeShellScript "nftables-save-deletions" "cat > ${last} <<'END'\n${deletions}END";
in
{
  options.networking.nftables = {
    enable = option false types.bool;
    preCheckRuleset = option "" types.lines;
    flushRuleset = option false types.bool;
    tables = option { } (types.attrsOf (types.submodule table));
  };

  config.systemd.services.nftables = lib.mkIf cfg.enable {
    description = "nftables firewall";
    wants = [ "network-pre.target" "sysinit.target" ];
    after = [ "sysinit.target" ];
    before = [ "network-pre.target" "shutdown.target" ];
    conflicts = [ "shutdown.target" ];
    wantedBy = [ "multi-user.target" ];
    reloadIfChanged = true;
    unitConfig.DefaultDependencies = false;
    serviceConfig = {
      Type = "oneshot";
      RemainAfterExit = true;
      ExecStart = [ ensure rules ];
      ExecStartPost = save;
      ExecReload = [ ensure rules save ];
      ExecStop = "${nft} -f ${last}";
      StateDirectory = "nftables";
    };
  };
}
