// about: dims, floats, names and constants print in one normal form
module "normal"
graph( %x : f32[ S+B , 2*3 ], %"y/0" : i64[ ] ) {
  %c = literal f32[2, 3] [1.0, 2.50, 3e0, -0.0, inf, nan]   // here
  %7 = add( %x, %x )
  %2 = relu(%7) : ?[B + S, 6]
  return %2 as %out, %"y/0"
}

// ----
module "normal"
symbol S
symbol B

graph(%x : f32[B + S, 6], %"y/0" : i64[]) {
  %c = literal f32[2, 3] [1, 2.5, 3, -0, inf, nan]
  %0 = add(%x, %x) : f32[B + S, 6]
  %1 = relu(%0) : ?[B + S, 6]
  return %1 as %out, %"y/0"
}
