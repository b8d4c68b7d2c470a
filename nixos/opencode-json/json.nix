# JSON text with object keys in an order of one's own, which builtins.toJSON cannot write: it sorts them by name.
{ lib }:
let
  inherit (lib)
    concatStringsSep
    filterAttrs
    isAttrs
    isList
    mapAttrsToList
    nameValuePair
    ;

  isOrdered = value: value._type or null == "ordered-object";

  # What builtins.toJSON writes as a string: derivations, and whatever else says how it is one.
  isScalar = value: !isList value && (!isAttrs value || value ? outPath || value ? __toString);

  write =
    indent: value:
    let
      inner = indent + "  ";
      lines =
        open: close: items:
        if items == [ ] then
          open + close
        else
          "${open}\n${inner}${concatStringsSep ",\n${inner}" items}\n${indent}${close}";
      entry = { name, value }: "${builtins.toJSON name}: ${write inner value}";
    in
    if isScalar value then
      builtins.toJSON value
    else if isList value then
      lines "[" "]" (map (write inner) value)
    else if isOrdered value then
      lines "{" "}" (map entry value.entries)
    else
      lines "{" "}" (map entry (mapAttrsToList nameValuePair (filterAttrs (_: v: v != null) value)));
in
{
  # An object whose keys keep their order; entries is a list of { name, value }.
  ordered = entries: {
    _type = "ordered-object";
    inherit entries;
  };

  # Indented JSON. Attributes that are null are left out; attribute sets are sorted by name, `ordered` ones are not.
  toOrderedJSON = value: write "" value + "\n";
}
