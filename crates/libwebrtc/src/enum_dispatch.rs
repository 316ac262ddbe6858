//! A macro that writes methods of an enum which call the same method of the value in each variant.
//! It is public because `livekit` uses it for its own enums of tracks and participants.

/// Implements methods on an enum by forwarding them to the value inside each variant.
///
/// ```
/// struct Circle;
/// struct Square;
/// impl Circle { fn corners(&self) -> u32 { 0 } }
/// impl Square { fn corners(&self) -> u32 { 4 } }
/// enum Shape { Circle(Circle), Square(Square) }
/// impl Shape {
///     libwebrtc::enum_dispatch!([Circle, Square]; fn corners(self: &Self) -> u32;);
/// }
/// assert_eq!(Shape::Square(Square).corners() + Shape::Circle(Circle).corners(), 4);
/// ```
#[macro_export]
macro_rules! enum_dispatch {
    (@forward $this:ident, [$($variant:ident),+], $method:ident, $arguments:tt) => {
        match $this {
            $(Self::$variant(held) => held.$method $arguments,)+
        }
    };
    ($variants:tt;) => {};
    (
        $variants:tt;
        $(#[$attribute:meta])*
        $visibility:vis fn $method:ident($this:ident: $this_type:ty $(, $argument:ident: $argument_type:ty)* $(,)?) -> $result:ty;
        $($rest:tt)*
    ) => {
        $(#[$attribute])*
        #[inline]
        $visibility fn $method($this: $this_type $(, $argument: $argument_type)*) -> $result {
            $crate::enum_dispatch!(@forward $this, $variants, $method, ($($argument),*))
        }
        $crate::enum_dispatch!($variants; $($rest)*);
    };
}
