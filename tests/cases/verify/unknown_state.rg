// error: V015: state `cache` names input `past`, which does not exist
state "cache" kv_cache "past" -> "present"

graph(%x : f32[2]) {
  return %x as %present
}
