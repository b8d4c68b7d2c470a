# Names and patterns of names, as the policy file's parser takes them, as far as it is cheap to say here: what is refused here is refused
# there. What takes lists of its own (public suffixes) or Unicode is left to the parser, which the build runs.
{ lib }:
let
  inherit (import ./cidr.nix { inherit lib; }) parseAddress parseCidr;

  # An address as it is or in brackets, as a network.
  networkOf =
    text:
    let
      bare = lib.removeSuffix "]" (lib.removePrefix "[" text);
      parsed = parseAddress bare;
    in
    if parsed ? problem then
      null
    else if parsed.value.family == 4 then
      "${parsed.value.canonical}/32"
    else
      "${bare}/128";
in
{
  # Whether something that should be a network may have been meant as a name.
  looksLikeName = text: builtins.match "[A-Za-z0-9_.*-]*[A-Za-z_*][A-Za-z0-9_.*-]*" text != null;

  # { value } or { problem }, a sentence that says what to write instead.
  parseName =
    text:
    let
      network = networkOf text;
      url = builtins.match "[A-Za-z][A-Za-z0-9+.-]*://([^/?#]*).*" text;
      ports = builtins.match "([^:/]+):([0-9,-]+)" text;
      # The dot that ends a name which is whole.
      name = lib.removeSuffix "." text;
      labels = lib.splitString "." name;
      named = lib.tail labels;
      # Of ASCII; what is beyond becomes ASCII by IDNA.
      strange = builtins.match ".*([][:space:][:cntrl:]!\"#$%&'()+,/:;<=>?@\\^`{|}~[]).*" text;
      long = lib.filter (label: lib.stringLength label > 63) labels;
      ascii = builtins.match "[ -~]*" text != null;
    in
    if text == "" then
      { problem = "a name is empty; write one as in `api.example.org`"; }
    else if network != null then
      {
        problem = "`${text}` is an address, and this takes names; list it by its network, `${network}`, in `outboundAllowCidrs`, or as `cidr` in `outboundAllow`";
      }
    else if (parseCidr text) ? value then
      {
        problem = "`${text}` is a network, and this takes names; list it in `outboundAllowCidrs`, or as `cidr` in `outboundAllow`";
      }
    else if url != null then
      { problem = "`${text}` is a URL; write the name of its host alone, `${lib.head url}`"; }
    else if ports != null then
      {
        problem = "`${text}` has ports; write `{ name = \"${lib.head ports}\"; ports = [ ${
          lib.concatMapStringsSep " " (port: "\"${port}\"") (lib.splitString "," (lib.last ports))
        } ]; }` in `outboundAllow`";
      }
    else if name == "*" then
      {
        problem = "`${text}` is no name; for every name below one write it after `*.`, as in `*.example.org`; for everything there is list `0.0.0.0/0` and `::/0` in `outboundAllowCidrs`";
      }
    else if lib.any (lib.hasInfix "*") named || lib.hasInfix "*" (lib.head labels) && lib.head labels != "*" then
      {
        problem = "`${text}` has a `*` that is not the whole first label; write the name after `*.`, as in `*.example.org`, which is every name below it at any depth";
      }
    else if strange != null then
      {
        problem = "`${text}` has `${lib.head strange}`, which no name has; write letters, digits, `-` and `_`, with dots between, as in `api.example.org`";
      }
    else if lib.elem "" labels then
      { problem = "`${text}` has an empty part; write a name with one dot between its parts, as in `api.example.org`"; }
    else if builtins.match "[0-9]+" (lib.last labels) != null then
      { problem = "`${text}` ends in a number, as addresses do, and no name does; write a name, or a network in `outboundAllowCidrs`"; }
    else if lib.last labels == "localhost" then
      { problem = "`${text}` is this machine, which no name may bring; list `127.0.0.1/32` with its ports, as `cidr` in `outboundAllow`"; }
    else if lib.length labels == 1 then
      {
        problem = "`${text}` has no dot: programs make a whole name of it by a search domain in resolv.conf; write that one, as in `${name}.example.org`";
      }
    else if ascii && long != [ ] then
      {
        problem = "`${lib.head long}` in `${text}` is ${toString (lib.stringLength (lib.head long))} characters long, and a part of a name has at most 63; correct it";
      }
    else if ascii && lib.stringLength name > 253 then
      { problem = "`${text}` is ${toString (lib.stringLength name)} characters long, and a name has at most 253; correct it"; }
    else
      { value = text; };
}
