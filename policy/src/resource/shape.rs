//! Shapes: a description of every API struct as data, generated together with the struct itself.
//!
//! Serde answers "does this JSON fit?" with the first thing that does not, and by default forgives unknown
//! fields: right for reading a store that a newer release may have written to, wrong at the door, where a person
//! waits for *all* mistakes and where an ignored field is a policy that does less than it says. So each struct is
//! declared once, through `api_object!`, which makes both the serde type and its [`Shape`]; the manifest parser
//! walks the document beside the shape and reports everything that does not fit, with its position.

use std::collections::BTreeMap;

/// What a JSON value must look like. Constructed by [`Described::shape`], never by hand elsewhere.
#[derive(Clone, Copy)]
pub enum Shape {
    /// Anything; not looked into.
    Any,
    /// `true` or `false`.
    Bool,
    /// A whole number within the bounds, both included.
    Integer {
        /// Smallest accepted value.
        min: i64,
        /// Largest accepted value.
        max: i64,
    },
    /// Any finite number.
    Number,
    /// A string; `check` says why a particular text is refused.
    Text {
        /// What such a string is called in errors: `a CIDR`, `a string`.
        what: &'static str,
        /// `Err` holds the reason, without naming the field.
        check: fn(&str) -> Result<(), String>,
    },
    /// A string or a whole number, read through its text.
    TextOrInteger {
        /// What such a value is called in errors: `a port`.
        what: &'static str,
        /// `Err` holds the reason, without naming the field.
        check: fn(&str) -> Result<(), String>,
    },
    /// One of the listed strings, spelled exactly so.
    Enum(&'static [&'static str]),
    /// A list of values of one shape.
    List(fn() -> Shape),
    /// A map from strings to values of one shape.
    Map(fn() -> Shape),
    /// An object with known fields.
    Object(&'static ObjectShape),
    /// An object that may also have fields which nobody knows yet. One that is spelled almost like a known one is a
    /// mistake.
    Open(&'static ObjectShape),
}

/// The fields of one API struct.
pub struct ObjectShape {
    /// Name of the Rust type, for documentation.
    pub name: &'static str,
    /// Fields in the order of declaration.
    pub fields: &'static [FieldShape],
    /// Names of fields that are known and kept, with any value, but have no effect here.
    pub not_honoured: &'static [&'static str],
}

/// One field of an API struct.
pub struct FieldShape {
    /// Its JSON name.
    pub name: &'static str,
    /// Shape of its value.
    pub shape: fn() -> Shape,
    /// Whether the object is refused without it.
    pub required: bool,
}

impl ObjectShape {
    /// The field called `name`, spelled exactly so.
    pub fn field(&self, name: &str) -> Option<&FieldShape> {
        self.fields.iter().find(|f| f.name == name)
    }
}

/// A type of the API that can say what its JSON looks like.
pub trait Described {
    /// Whether an object that lacks this field is refused.
    const REQUIRED: bool = true;

    /// The shape of this type's JSON.
    fn shape() -> Shape;

    /// Whether the value is left out when written. Only an absent `Option` is: an empty list is written as an
    /// empty list, because "no nets" and "any net" are opposites in a rule.
    fn is_absent(&self) -> bool {
        false
    }
}

impl<T: Described> Described for Option<T> {
    const REQUIRED: bool = false;

    fn shape() -> Shape {
        T::shape()
    }

    fn is_absent(&self) -> bool {
        self.is_none()
    }
}

/// What is rare in objects of which there are very many stands behind a pointer.
impl<T: Described> Described for Box<T> {
    const REQUIRED: bool = T::REQUIRED;

    fn shape() -> Shape {
        T::shape()
    }

    fn is_absent(&self) -> bool {
        T::is_absent(self)
    }
}

impl<T: Described> Described for Vec<T> {
    fn shape() -> Shape {
        Shape::List(T::shape)
    }
}

impl<T: Described> Described for BTreeMap<String, T> {
    fn shape() -> Shape {
        Shape::Map(T::shape)
    }
}

impl Described for serde_json::Value {
    fn shape() -> Shape {
        Shape::Any
    }
}

impl Described for bool {
    fn shape() -> Shape {
        Shape::Bool
    }
}

impl Described for f64 {
    fn shape() -> Shape {
        Shape::Number
    }
}

impl Described for String {
    fn shape() -> Shape {
        Shape::Text {
            what: "a string",
            check: |_| Ok(()),
        }
    }
}

macro_rules! describe_integers {
    ($($ty:ty: $min:expr, $max:expr;)*) => {$(
        impl Described for $ty {
            fn shape() -> Shape {
                Shape::Integer { min: $min, max: $max }
            }
        }
    )*};
}
describe_integers! {
    u8: 0, u8::MAX as i64;
    u16: 0, u16::MAX as i64;
    u32: 0, u32::MAX as i64;
    i32: i32::MIN as i64, i32::MAX as i64;
    i64: i64::MIN, i64::MAX;
}

macro_rules! describe_text {
    ($($ty:ty: $what:literal;)*) => {$(
        impl Described for $ty {
            fn shape() -> Shape {
                Shape::Text {
                    what: $what,
                    check: |text| text.parse::<$ty>().map(drop).map_err(|e| e.to_string()),
                }
            }
        }
    )*};
}
describe_text! {
    std::net::IpAddr: "an IP address";
    std::net::Ipv4Addr: "an IPv4 address";
    std::net::Ipv6Addr: "an IPv6 address";
}

impl Described for ipnetwork::IpNetwork {
    fn shape() -> Shape {
        Shape::Text {
            what: "a CIDR",
            check: |text| match text.parse::<ipnetwork::IpNetwork>() {
                Ok(_) => Ok(()),
                Err(_) => Err(format!("{text:?} is not a CIDR such as 10.0.0.0/8 or fd00::/64")),
            },
        }
    }
}

/// Writes a number as the API's other writers do: without a fraction when it has none (`100`, not `100.0`).
pub(crate) fn plain_number<S: serde::Serializer>(
    value: &Option<f64>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match value {
        None => serializer.serialize_none(),
        // 2^53: above it not every integer is an f64, and the fraction-free form would claim precision.
        Some(v) if v.fract() == 0.0 && v.abs() < 9_007_199_254_740_992.0 => {
            serializer.serialize_i64(*v as i64)
        }
        Some(v) => serializer.serialize_f64(*v),
    }
}

/// Declares a struct of the API once: the serde type and its [`Shape`]. The literal before each field is its
/// JSON name; a field whose type is not an `Option` is required. `..NAMES` at the end adds a map `other` with the
/// fields that are accepted without having an effect.
macro_rules! api_object {
    (
        $(#[$meta:meta])*
        $vis:vis struct $name:ident {
            $( $(#[$field_meta:meta])* $json:literal $field:ident: $ty:ty, )*
            $( ..$not_honoured:path )?
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        $vis struct $name {
            $(
                $(#[$field_meta])*
                #[serde(rename = $json, skip_serializing_if = "crate::resource::shape::Described::is_absent")]
                pub $field: $ty,
            )*
            $(
                #[doc = "Fields that are kept without having an effect here."]
                #[serde(flatten)]
                pub other: serde_json::Map<String, $crate::resource::shape::api_object!(@value $not_honoured)>,
            )?
        }

        impl crate::resource::shape::Described for $name {
            fn shape() -> crate::resource::shape::Shape {
                const SHAPE: crate::resource::shape::ObjectShape = crate::resource::shape::ObjectShape {
                    name: stringify!($name),
                    fields: &[$(crate::resource::shape::FieldShape {
                        name: $json,
                        shape: <$ty as crate::resource::shape::Described>::shape,
                        required: <$ty as crate::resource::shape::Described>::REQUIRED,
                    }),*],
                    not_honoured: crate::resource::shape::api_object!(@names $($not_honoured)?),
                };
                crate::resource::shape::Shape::Object(&SHAPE)
            }
        }
    };
    (@value $not_honoured:path) => { serde_json::Value };
    (@names) => { &[] };
    (@names $not_honoured:path) => { $not_honoured };
}

/// Declares an enumeration whose values are strings of the API. A value not listed is an error wherever it is
/// read: guessing what a newer release meant by it could allow what its author denied.
macro_rules! api_enum {
    (
        $(#[$meta:meta])*
        pub enum $name:ident {
            $( $(#[$variant_meta:meta])* $variant:ident = $text:literal ),* $(,)?
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        pub enum $name {
            $( $(#[$variant_meta])* #[serde(rename = $text)] $variant, )*
        }

        impl $name {
            /// Every value, in the order of declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The API's spelling.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl crate::resource::shape::Described for $name {
            fn shape() -> crate::resource::shape::Shape {
                crate::resource::shape::Shape::Enum(&[$($text),*])
            }
        }
    };
}

pub(crate) use {api_enum, api_object};
